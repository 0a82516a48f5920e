"""The table of findings: every code, its slug, its level, and what follows from it and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.records import Level


@dataclass(frozen=True, kw_only=True)
class Code:
    """One kind of finding; its page is ``docs/rules/CODE.md``.

    Attributes:
        code: Stable once released.
        slug: ``family/cause``.
        level: How much it matters, where the intent is known.
        so: What follows.
        do: What to do.
    """

    code: str
    slug: str
    level: Level
    so: str
    do: str


_NEVER_LEARNS = "it keeps its initial value for the whole run, while the loss may still fall"
_TABLE: tuple[tuple[str, str, Level, str, str], ...] = (
    # FL1xx: the flow from parameter to loss is cut
    ("FL101", "grad-cut/no_grad", "fault", _NEVER_LEARNS,
     "leave it outside no_grad; a frozen module behind a trainable one needs requires_grad_(False), and no more"),
    ("FL102", "grad-cut/inference_mode", "fault", _NEVER_LEARNS, "leave it outside inference_mode"),
    ("FL103", "grad-cut/global-mode", "fault", _NEVER_LEARNS,
     "switch gradients off in a `with torch.no_grad():` block, which ends, instead of for the whole program"),
    ("FL104", "grad-cut/detach", "fault", _NEVER_LEARNS, "take the detach() or .data out of this path"),
    ("FL105", "grad-cut/rewrap", "fault", _NEVER_LEARNS,
     "use the tensor itself, or torch.stack for several: torch.tensor(t) copies values and drops the graph"),
    ("FL106", "grad-cut/numpy", "fault", _NEVER_LEARNS,
     "stay in torch between the parameter and the loss; .item() and .numpy() are for logs"),
    ("FL107", "grad-cut/reattach", "fault",
     "backward() runs and stops at the new leaf: " + _NEVER_LEARNS,
     "remove both the no_grad or detach and the requires_grad_(True): freezing alone costs no graph"),
    ("FL108", "grad-cut/checkpoint-reentrant", "fault", _NEVER_LEARNS, "checkpoint with use_reentrant=False"),
    ("FL109", "stale-copy", "fault", "the copy is trained on nothing and the parameter is used nowhere",
     "read the parameter in every forward; a cache must be dropped at every update and never filled under no_grad"),
    ("FL110", "inference-tensor", "fault", "autograd cannot save it for backward",
     "make it under torch.no_grad(), or clone() it outside inference_mode"),
    ("FL111", "dead-loss-term", "fault", "the term changes the loss's value and trains nothing",
     "let the gradient through, or leave the term out of the loss"),
    ("FL112", "flow-mismatch", "fault", "the term trains other parameters than it was declared to",
     "detach the side the term must not train, and only that side"),
    ("FL113", "grad-leak/other-loss", "fault", "the update follows the sum of two losses' gradients",
     "detach() what the other loss must not train, or clear the gradients before this backward"),
    ("FL114", "zero-grad/nondiff-op", "fault", "nothing before the operator learns",
     "use a straight-through estimator, x + (f(x) - x).detach(), or a smooth operator"),
    ("FL115", "zero-grad/cancelled", "fault", "nothing learns from this path",
     "detach the copy that was meant as a constant"),
    ("FL116", "grad-cut/function", "fault", _NEVER_LEARNS, "return this input's gradient from backward"),
    # FL2xx: optimizer and module disagree
    ("FL201", "not-in-optimizer", "fault", "it has a gradient in every step and never moves",
     "give it to the optimizer (add_param_group for what was unfrozen later), or freeze it"),
    ("FL202", "stale-in-optimizer", "fault", "the optimizer steps tensors that the loss does not use",
     "make the optimizer after the model is complete"),
    ("FL203", "empty-optimizer", "fault", "its step does nothing", "give it the parameters that are to learn"),
    ("FL204", "step-noop", "fault", "the loss is computed and nothing learns from it",
     "the order is zero_grad, backward, step, with a learning rate that the parameters' precision can resolve"),
    ("FL205", "unregistered", "fault", "no optimizer built from model.parameters() holds it, no checkpoint saves it",
     "register it (nn.Parameter as an attribute, nn.ParameterList) and give it to the optimizer"),
    ("FL206", "non-leaf-parameter", "fault", "gradients go to a tensor that nobody holds",
     "make the Parameter last: nn.Parameter(torch.randn(n, device=device) * 0.01)"),
    ("FL207", "unused-parameter", "fault", _NEVER_LEARNS, "use it in forward, or do not make it"),
    ("FL208", "grad-not-cleared", "fault", "each update follows the sum of all gradients so far",
     "call zero_grad() once between an update and the next backward"),
    ("FL209", "shared-by-optimizers", "fault", "it moves twice a step, with two momenta",
     "let one optimizer hold each parameter"),
    ("FL210", "frozen-in-optimizer", "note", "they do no harm while their gradient is None",
     "give the optimizer what requires a gradient"),
    ("FL211", "zero-grad/moved", "fault", "weight decay or momentum moves it, the loss does not",
     "clear gradients with set_to_none=True, or take it out of the optimizer"),
    ("FL212", "not-equivalent/microbatch", "note", "the accumulated gradient is not that of the whole batch",
     "divide each micro-batch's loss by the number of them, or by the whole batch's number of counted elements"),
    ("FL213", "freeze-noop", "fault", "an attribute of this name freezes nothing", "call requires_grad_(False)"),
    ("FL214", "intended-but-frozen", "fault", _NEVER_LEARNS, "call requires_grad_(True) and give it to the optimizer"),
    ("FL215", "unintended-trainable", "fault", "what was meant to stay is trained",
     "call requires_grad_(False) before the optimizer is made"),
    ("FL216", "no-update", "note", "its gradients are used by nobody yet", "step an optimizer after it"),
    # FL3xx: modes, statistics and values that should stand still
    ("FL301", "frozen-state/batchnorm", "fault", "the frozen part computes something else after every step",
     "keep it in eval() through every later model.train(): frostline.freeze_ does"),
    ("FL302", "frozen-state/dropout", "fault", "the frozen part's output is random",
     "keep it in eval(), and pass training=self.training to functional dropout"),
    ("FL303", "frozen-moved/stale-grad", "fault", "the optimizer still moves it",
     "set its .grad to None when freezing it, and take it out of the optimizer"),
    ("FL304", "frozen-moved/weight-decay", "fault", "weight decay shrinks it in every step",
     "take it out of the optimizer, or into a group with weight_decay=0"),
    ("FL305", "state-polluted/batchnorm", "fault", "running statistics follow data that is not trained on",
     "call eval() for this forward"),
    ("FL306", "state-stale/ema-buffers", "fault", "averaged weights are evaluated with other weights' statistics",
     "copy the buffers too"),
    ("FL307", "not-equivalent/checkpoint-rng", "fault", "the gradient is that of another dropout mask",
     "leave preserve_rng_state at True"),
    ("FL308", "not-equivalent/checkpoint-bn", "fault", "running statistics are updated twice a step",
     "leave BatchNorm out of the checkpoint"),
    ("FL309", "not-equivalent/inplace-data", "fault", "the gradient is computed from the changed values, silently",
     "write out of place; .data hides the change from autograd's check"),
    ("FL310", "inplace-on-saved", "fault", "autograd refuses to go backward", "write out of place"),
    # FL4xx: precision and scaling
    ("FL401", "clip-before-unscale", "fault", "the update is smaller than meant by about the scale",
     "call scaler.unscale_(optimizer) before clipping"),
    ("FL402", "scaler-updated-twice", "fault", "the second optimizer of the step is unscaled by another scale",
     "call scaler.update() once, after the last scaler.step()"),
    ("FL403", "nan-gradient/masked-branch", "fault", "one step makes the parameters NaN",
     "keep the operator away from the value without a finite derivative; masking its output is not enough"),
    ("FL404", "penalty-diluted", "fault", "the penalty is weaker by that factor than its weight says",
     "sum the squares of one output's gradient: gradient.reshape(num_outputs, -1).square().sum(1).mean()"),
    # FL5xx: memory paid for nothing
    ("FL501", "wasted-gradient", "cost", "gradients and saved inputs are kept for nobody",
     "freeze it with requires_grad_(False); if it was meant to learn, give it to an optimizer"),
    ("FL502", "wasted-backward", "note", "gradients are computed and thrown away",
     "requires_grad_(False) on what this loss does not train, during its step; it does no harm as it is"),
    ("FL503", "needless-graph", "note", "a graph is recorded and dropped", "run it under torch.no_grad()"),
    ("FL504", "graph-retained", "cost", "memory grows, or is held, by graphs nobody goes back through",
     "keep numbers, not losses: loss.item() or loss.detach(); leave retain_graph out"),
    ("FL505", "frozen-saves-input", "note", "torch keeps inputs that only a weight's gradient would need", "nothing "
     "is wrong; operators that keep less give the same gradient"),
    ("FL506", "no_grad-without-with", "cost", "a bare call switches nothing off", "write `with torch.no_grad():`"),
    ("FL507", "anomaly-mode", "cost", "every operator's stack trace is recorded",
     "use it to hunt one NaN, then remove it"),
    ("FL508", "cache-emptied", "note", "it frees no tensor and makes the next step slower", "remove it"),
    ("FL509", "grads-not-released", "note", "gradients stay allocated through the next forward",
     "leave set_to_none at True"),
    ("FL510", "unpinned-copy", "note", "the copy is not asynchronous", "pin_memory=True in the DataLoader"),
    ("FL511", "default-changed", "note", "every later tensor is made with it, libraries' ones included",
     "pass dtype= and device= where they are meant"),
    ("FL512", "dead-graph", "cost", "it holds this memory while the loss goes backward, and trains nothing",
     "run it under torch.no_grad(), or let a loss read it"),
)  # fmt: skip

CODES: dict[str, Code] = {
    code: Code(code=code, slug=slug, level=level, so=so, do=do) for code, slug, level, so, do in _TABLE
}
"""By code."""
