"""The only file that registers the forward hooks of a patch, removes them, and finds them."""

from collections.abc import Callable, Iterator

from torch import nn

from freeloc.interception import compiled
from freeloc.interception.layers import LayerHook
from freeloc.interception.patched import PatchedModel


def put_on(module: nn.Module, before: Callable[..., None] | None, after: Callable[..., None]) -> None:
    """Register a forward pre-hook and a forward hook, with keyword arguments, also called after an exception.

    They have the same ids on every module and in every patch, while PyTorch would count. torch.compile guards ids, so
    equal layers share a graph, and a second patch reuses the code that was compiled under the first.
    """
    if before is not None:
        module._forward_pre_hooks_with_kwargs[_ID] = True
        module._forward_pre_hooks[_ID] = before
    module._forward_hooks_with_kwargs[_ID] = module._forward_hooks_always_called[_ID] = True
    module._forward_hooks[_ID] = after


_ID = -21_000_000_000
"""Id of freeloc's hooks, which PyTorch's counter never reaches."""


def model_of(hook: object) -> PatchedModel | None:
    """The patched model that a forward hook belongs to, or None if it is not freeloc's."""
    model = getattr(getattr(hook, "__self__", None), "model", None)
    return model if isinstance(model, PatchedModel) else None


def patched_models(module: nn.Module) -> Iterator[PatchedModel]:
    """The patched models with hooks on this module itself, each once."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    yield from {id(model): model for hook in hooks if (model := model_of(hook)) is not None}.values()


def take_off(module: nn.Module, model: PatchedModel) -> None:
    """Remove the hooks of a patched model from one module, also if no `Patch` refers to them any more."""
    busy = any(forward.is_running for forward in model.running)
    for name in ("_forward_pre_hooks",) if busy else ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(module, name)
        for key, hook in list(hooks.items()):
            if model_of(hook) is model:
                # Before the last hook is removed: after an interrupt here, it is done again.
                compiled.unmark(module)
                if isinstance(layer := getattr(hook, "__self__", None), LayerHook):
                    layer.held.disown()
                for others in (f"{name}_with_kwargs", "_forward_hooks_always_called"):
                    getattr(module, others).pop(key, None)
                hooks.pop(key, None)
    if _ID not in module._forward_pre_hooks:  # an error in `put_on` may have left these without a hook
        module._forward_pre_hooks_with_kwargs.pop(_ID, None)
    if _ID not in module._forward_hooks:
        module._forward_hooks_with_kwargs.pop(_ID, None)
        module._forward_hooks_always_called.pop(_ID, None)
