"""A torch function mode that sees where parameters enter operations.

While a measured step's forward pass runs, it sees every call that torch's Python
functions make. In a step that verifies, every call is made as it is, and hooks on the
results look at what comes back. In all others the call is made as was confirmed: with
the parameter detached, and a hook on the result takes over the parameter's gradient:
the same gradient, with the norms of its parts noted. Module code, classes and names
stay as they are.
"""

from __future__ import annotations

import functools
import types
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rightbatch.core.torch_private import (
    as_no_view,
    in_backward_pass,
    without_override_check,
)
from rightbatch.noise.capture.autograd_hooks import GradientHook, Together
from rightbatch.noise.capture.gradient_formulas import Use
from rightbatch.noise.capture.group_norms import GroupNorms, ParameterKey
from rightbatch.noise.capture.invocation import Invocation, flat
from rightbatch.noise.capture.layout import AXES, Axis, possible_axes
from rightbatch.noise.capture.operations import Operations, ParameterUse
from rightbatch.noise.capture.plan import Place, Plan
from rightbatch.noise.capture.rerun import NotByGroupError, Rerun
from rightbatch.noise.capture.tracked import TrackedTensor

# Operations whose result is the parameter itself in another shape or precision.
VIEWS = {
    *("t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze"),
    *("flatten", "unflatten", "contiguous", "to", "float", "type_as", "narrow"),
    *("select", "view_as", "swapaxes", "movedim", "half", "bfloat16", "double"),
}
PARTS = {"chunk", "split", "unbind", "tensor_split"}
DERIVING = VIEWS | PARTS | {"__getitem__", "__get__"}
TRANSPOSED = {torch.Tensor.T.__get__, torch.Tensor.mT.__get__}  # type: ignore[attr-defined]
# Operations that leave every example where it is in their first argument.
EXAMPLES_STAY = {
    *("add", "sub", "mul", "div", "true_divide", "rsub", "neg", "pow", "where"),
    *("to", "float", "double", "half", "bfloat16", "long", "int", "type", "clone"),
    *("contiguous", "detach", "dropout", "one_hot", "embedding", "linear"),
    *("relu", "prelu", "tanh", "sigmoid", "gelu", "silu", "softmax"),
    *("layer_norm", "rms_norm"),
}
NO_PLACE = "it is used on something without a place for each example"
UNKNOWN = "it enters no operation that is known"


@dataclass(eq=False)
class Site:
    """A call whose gradients are looked at, and all the ways to see it.

    Attributes:
        place: Which.
        options: How parameters enter it, by the axis that has the examples.
        certain: Whether its axis is known from the model's first input.
        rerun: The call, where it has no formula.
    """

    place: Place
    options: dict[Axis, list[ParameterUse]] = field(default_factory=dict)
    certain: bool = False
    rerun: Rerun | None = None

    @property
    def axes(self) -> list[tuple[Axis, ...]]:
        """Which axes of each of its results may have the examples."""
        if self.rerun is not None:
            return [(AXES[axis],) for axis in self.rerun.outputs]
        return [tuple(self.options)]


class Inspector(Protocol):
    """Looks at the gradients that come back in a step that verifies."""

    def arrived(self, site: Site, grads: Sequence[Tensor | None]) -> None:
        """The gradients of a call's results."""


class CaptureMode(TorchFunctionMode):
    """Hooks every operation a tracked parameter enters while it is active.

    Args:
        parameters: The tracked ones.
        group_norms: Where the hooks note norms.
        plan: How calls are seen; of a step that verifies it is made.
        verifies: Whether this step does.
        examples_axis: Which axis of a tensor has the examples, if that is certain.

    Attributes:
        coupled: Whether BatchNorm mixes the examples of the batch: there are no groups.
        skipped: Whether something was left alone because ``allowed`` said so.
        departed: Parameters that entered a call that is not in the plan.
        allowed: Whether operations may be hooked now.
        sites: All calls of a step that verifies.
        inspector: What looks at their gradients meanwhile.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        group_norms: GroupNorms,
        plan: Plan,
        *,
        verifies: bool,
        examples_axis: Callable[[Tensor], Axis | None] = lambda tensor: None,
    ) -> None:
        super().__init__()
        self.parameters, self.group_norms = parameters, group_norms
        self.plan, self.verifies = plan, verifies
        self.coupled = self.skipped = False
        self.departed: set[int] = set()
        self.allowed: Callable[[], bool] = lambda: True
        self.sites: list[Site] = []
        self.inspector: Inspector | None = None
        self._examples_axis = examples_axis
        self._operations = Operations(group_norms.batch, group_norms.order)
        self._numbers: Counter[tuple[str, tuple[ParameterKey, ...]]] = Counter()
        self._guard = group_norms.guard
        self._handles: list[Any] = []
        self._certain: dict[int, tuple[Tensor, Axis]] = {}
        for i, parameter in enumerate(parameters):
            tracked = TrackedTensor.of(ParameterKey(i), parameter)
            self._operations.tracked.add(tracked)

    def release(self) -> None:
        """Let the graph go: hooks on it refer to what refers to it."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.sites.clear()
        self._certain.clear()
        self.inspector = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func not in TRANSPOSED:
            return func(*args, **kwargs)
        if name == "batch_norm" and (args[5:6] or [kwargs.get("training")])[0]:
            self.coupled = True
            return func(*args, **kwargs)
        if name == "multi_head_attention_forward" and torch.is_grad_enabled():
            return self._attention(func, args, kwargs)
        find = self._operations.tracked.find
        given = [t for a in flat((args, kwargs)) if (t := find(a)) is not None]
        if not given or self._guard.stopped:
            out = func(*args, **kwargs)
            if self.verifies and name in EXAMPLES_STAY and args:
                self._guard.run(self._follow, name, args[0], out)
            return out
        if not torch.is_grad_enabled() or not self.allowed():
            # Checkpointing of the older kind has no gradients the first time.
            self.skipped = True
            if not (self.verifies and torch.is_grad_enabled()):
                return func(*args, **kwargs)
        call = Invocation(func, args, kwargs, given)
        keys = tuple(dict.fromkeys(t.key for t in given))
        if name in DERIVING:
            out = call.make()
            self._guarded(keys, self._derived, call, out)
            return out
        if any(type(t.tensor) not in (Tensor, nn.Parameter) for t in given):
            return call.make()  # a distributed or quantised tensor
        number = 0 if in_backward_pass() else self._numbers[name, keys]
        self._numbers[name, keys] += 1
        see = self._observed if self.verifies else self._captured
        return see(Place(name, keys, number), call)

    def _axis_of(self, tensor: Any) -> Axis | None:
        """Where a tensor has the examples, if that is certain."""
        if not isinstance(tensor, Tensor):
            return None
        if (known := self._certain.get(id(tensor))) is not None:
            return known[1]
        return self._examples_axis(tensor)

    def _follow(self, name: str, before: Any, out: Any) -> None:
        """The model's first input, on its way to the first parameters."""
        axis = self._axis_of(before)
        if axis is None or not isinstance(out, Tensor):
            return
        places = 2 if axis == "second" else 1
        if out.shape[:places] != before.shape[:places]:
            return
        self._certain[id(out)] = out, axis
        if out.requires_grad:  # it has met parameters
            number = self._numbers[name, ()]
            self._numbers[name, ()] += 1
            self._attach(Site(Place(name, (), number), {axis: []}, True), out)

    def _attach(self, site: Site, out: Any) -> Any:
        """The call's results, whose gradients will be looked at."""
        self.sites.append(site)
        arrived = functools.partial(self._arrived, site)
        if not isinstance(out, Tensor):
            return Together.apply(arrived, *flat(out))
        self._handles.append(out.register_hook(lambda g: arrived((g,))))
        return out

    def _guarded(
        self, keys: Sequence[ParameterKey], work: Callable[..., Any], *args: Any
    ) -> Any:
        """Work of ours; if it fails, all parameters of the call are left alone."""
        lost = self._guard.lost
        indexes = [key.index for key in keys]
        part = next((i for i in indexes if i in lost), indexes[0] if indexes else None)
        done = self._guard.run(work, *args, part=part)
        if part is not None and part in lost:
            for index in indexes:
                lost.setdefault(index, lost[part])
        return done

    def _captured(self, place: Place, call: Invocation) -> Any:
        """The call as was confirmed, with its parameters hooked."""
        operations, keys = self._operations, place.keys
        route = self.plan.route(place, again=in_backward_pass())
        if route == "rows":
            out = self._guarded(keys, operations.rows_of_a_table, call)
            return call.make() if out is None else out
        if route == "again":
            return self._seen_again(place, call)
        wanted = {k for k in keys if k.index in self.plan.confirmed}
        if not wanted:
            return call.make()
        uses: list[ParameterUse] = []
        if route is not None and route != "none":
            understood = self._guarded(keys, operations.understand, call, route)
            operations.subject = None  # an activation, which nobody else may keep
            uses = [u for u in understood or [] if u.tracked.key in wanted]
        if _keys(uses) != wanted:
            out = call.make()
            if any(isinstance(o, Tensor) and o.requires_grad for o in flat(out)):
                self.departed |= {key.index for key in wanted}
            return out
        detached = {id(u.tracked.tensor): u.tracked.tensor.detach() for u in uses}
        hooked = self._guarded(keys, self._hook, call.make(detached), uses)
        return call.make() if hooked is None else hooked

    def _hook(self, out: Tensor, uses: list[ParameterUse]) -> Tensor:
        # torch's products of more than two axes end in a view; a hook on a view costs
        # copies. Nothing else refers to what this is a view of.
        out = as_no_view(out)
        pairs = [(u.key, u.formula) for u in uses]
        saved = [u.saved for u in uses]
        targets = [u.owner.tensor for u in uses]
        return GradientHook.apply(out, self.group_norms, pairs, *saved, *targets)

    def _observed(self, place: Place, call: Invocation) -> Any:
        """The call as it is; hooks on its result look at every way to see it."""
        operations, keys = self._operations, place.keys
        options = self._guarded(keys, operations.possible, call) or {}
        subject, operations.subject = operations.subject, None
        known = self._axis_of(subject)
        certain = known is not None and bool(options)
        if certain:
            options = {a: uses for a, uses in options.items() if a == known}
        rows = self.plan.routes.get(place) == "rows" or not options
        if rows and place.name == "embedding":
            out = self._guarded(keys, operations.rows_of_a_table, call)
            if out is not None:
                self.plan.routes[place] = "rows"
                return out
        if options and all(_keys(uses) == set(keys) for uses in options.values()):
            # An operation on a view in its place would take the hook away.
            out = as_no_view(call.make())
            return self._attach(Site(place, options, certain), out)
        matrix = subject is not None and subject.dim() > 1
        if matrix and not possible_axes(subject, self.group_norms.batch):
            # Routed to experts, say: by chance the next number of rows may fit.
            self.plan.barred |= dict.fromkeys((key.index for key in keys), NO_PLACE)
        out = self._seen_again(place, call)
        if place.name in EXAMPLES_STAY and call.args:
            self._guarded(keys, self._follow, place.name, call.args[0], out)
        return out

    def _seen_again(self, place: Place, call: Invocation) -> Any:
        """The call as it is, and again for every group once its gradients are there."""
        out = call.make()
        outs = flat(out)
        if not any(isinstance(o, Tensor) and o.requires_grad for o in outs):
            return out  # its size, say
        rerun = self._guarded(place.keys, Rerun.of, call, outs, self.group_norms.batch)
        if rerun is None:
            self.departed |= {key.index for key in place.keys}
            return out
        data, axis = rerun.inputs[0]
        certain = self._axis_of(data) == AXES[axis]
        return self._attach(Site(place, certain=certain, rerun=rerun), out)

    def _arrived(self, site: Site, grads: Sequence[Tensor | None]) -> None:
        keys = site.place.keys
        if self.inspector is not None:
            self._guarded(keys, self.inspector.arrived, site, grads)
        elif torch.is_grad_enabled():
            self.group_norms.differentiated = True
        else:
            self._guarded(keys, self.note, site, grads, self.group_norms)

    def note(
        self, site: Site, grads: Sequence[Tensor | None], norms: GroupNorms
    ) -> list[tuple[ParameterUse, Tensor]]:
        """Note the norms of a call's parameters.

        Returns:
            The gradients that were made by a formula.
        """
        if site.rerun is not None:
            try:
                site.rerun.note(grads, norms)
            except NotByGroupError:
                self.departed |= {key.index for key in site.place.keys}
            return []
        (g,) = grads
        assert g is not None
        uses = site.options.get(self.plan.routes.get(site.place), [])  # type: ignore[arg-type]
        return [(u, norms.gradient(u.key, Use(u.formula, u.saved, g))) for u in uses]

    def _derived(self, call: Invocation, out: Any) -> None:
        """Views of parameters are parameters: their gradient has the same norm."""
        index = call.name == "__getitem__" and not _basic(call.args[1])
        if len(call.given) != 1 or index:
            return
        for view in out if call.name in PARTS else [out]:
            if isinstance(view, Tensor) and view.requires_grad:
                self._operations.tracked.add_view(call.given[0], view)

    def _attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Torch's attention, seen inside."""
        query = args[0] if args else kwargs["query"]
        with self:
            body = without_override_check(func) if query.dim() == 3 else None
            return (body or func)(*args, **kwargs)


def _keys(uses: list[ParameterUse]) -> set[ParameterKey]:
    return {u.tracked.key for u in uses}


def _basic(index: Any) -> bool:
    """Whether it takes a view: no tensors, no lists."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(p, int | slice | None | types.EllipsisType) for p in parts)
