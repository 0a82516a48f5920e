"""Records as one page: no network, no script, under 200 KB."""

from frostline.reports.html.page import render_html

__all__ = ["render_html"]
