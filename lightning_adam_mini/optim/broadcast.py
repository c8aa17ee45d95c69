"""Tensors that stay broadcast where they are copied.

:func:`~lightning_adam_mini.to_adamw_state_dict` gives second moments the shape of their parameters as broadcast views, which take hardly
any memory, in a file too. But whatever saves in the background (Lightning's ``AsyncCheckpointIO``) copies each tensor first, and torch
makes a copy of a broadcast view dense, unless a class of tensors says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

_COPIES = frozenset({Tensor.clone, Tensor.cpu, Tensor.cuda, Tensor.detach, Tensor.to, torch.clone, torch.detach})


class BroadcastTensor(Tensor):
    """A broadcast view whose copies are broadcast views too.

    Copies of the same dtype, on any device, take the memory of the values that are broadcast, and are of this class again. Whatever else is
    done with one gives ordinary tensors. So does a copy that names a dtype or a memory format, which is dense. Pickled, it is an ordinary
    broadcast view, which loads without this package.

    Example:
        >>> one = torch.ones(1, 1).expand(1000, 1000).as_subclass(BroadcastTensor)
        >>> copy = one.detach().clone()
        >>> copy.shape, copy.untyped_storage().nbytes()
        (torch.Size([1000, 1000]), 4)
        >>> type(one + 1), type(one.to(torch.float64)), one.to(torch.float64).untyped_storage().nbytes()
        (<class 'torch.Tensor'>, <class 'torch.Tensor'>, 8000000)
    """

    @classmethod
    @override
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():  # whose results are plain tensors
            if func not in _COPIES:
                return func(*args, **kwargs)
            if any(isinstance(a, (Tensor, torch.dtype, torch.memory_format)) for a in (*args[1:], *kwargs.values())):
                result = func(*args, **kwargs)
                # Whoever asks for a dtype may write to what comes back, as torch's optimizers do, even if it is of that dtype already.
                return result.contiguous() if result is args[0] else result
            view: Tensor = args[0]
            values = view[tuple(slice(None) if stride else slice(0, 1) for stride in view.stride())]
            return func(values, *args[1:], **kwargs).expand(view.shape).as_subclass(cls)

    @override
    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = memo[id(self)] = self.clone()
        return copy

    @override
    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)
