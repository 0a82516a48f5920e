"""Complete systems, strangers to each other; `registry` knows their names."""
