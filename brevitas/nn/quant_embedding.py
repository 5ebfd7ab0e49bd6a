"""The quantized table of embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas.errors import QuantConfigError
from brevitas.nn.attach import Slot
from brevitas.nn.quantized_weight import QuantWeightMixin
from brevitas.quant import Int8WeightPerTensorFloat
from brevitas.quant_tensor import QuantTensor

__all__ = ["QuantEmbedding"]


class QuantEmbedding(QuantWeightMixin, nn.Embedding):
    """Lookup in a quantized table.

    >>> import torch
    >>> from brevitas.nn import QuantEmbedding
    >>> words = QuantEmbedding(100, 16, padding_idx=0, weight_bit_width=4, return_quant_tensor=True)
    >>> y = words(torch.tensor([[3, 41, 0]]))
    >>> y.shape, int(y.bit_width), bool((y.int() == words.int_weight()[[3, 41, 0]]).all())
    (torch.Size([1, 3, 16]), 4, True)

    Args:
        num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, device, dtype: as
            for ``torch.nn.Embedding``. ``max_norm`` bounds the float vectors, which are then quantized: all of them,
            while torch shortens those that are looked up, so that no scale depends on what was looked up before.
        weight_quant: quantizer class, proxy of another layer to share, or ``None``.
        return_quant_tensor: return a ``QuantTensor``, on the grid of the table.
        **kwargs: directives with the prefix ``weight_``.

    Input: integers of any shape (*); output (*, embedding_dim). The whole table is quantized in each forward, so that
    its statistics do not depend on what is looked up. A scale per output channel is one for each vector.

    Raises:
        QuantConfigError: an option that is unknown, has no effect, or is illegal; ``sparse=True`` with a quantizer.
    """

    #: An output element is a weight.
    weights_per_output = 1

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        weight_quant: Any = Int8WeightPerTensorFloat,
        return_quant_tensor: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Embedding.__init__(
            self,
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            _freeze,
            device=device,
            dtype=dtype,
        )
        self._init_layer(return_quant_tensor)
        self._attach([Slot("weight_quant", "weight", weight_quant, "weight_")], kwargs)
        if sparse and self.is_weight_quant_enabled:
            raise QuantConfigError(
                "QuantEmbedding: sparse = True cannot be used with a weight quantizer: the gradient of a quantized "
                "table is dense; set sparse = False, or weight_quant = None"
            )
        if getattr(self.weight_quant, "requires_quant_input", False):
            raise QuantConfigError(
                f"QuantEmbedding: {self.weight_quant.quant_injector.__name__} bounds what a layer accumulates, and an "
                "embedding adds nothing up; use another weight quantizer, such as Int8WeightPerTensorFloat"
            )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        **kwargs: Any,
    ) -> QuantEmbedding:
        """A layer with the vectors ``embeddings``, of shape (num_embeddings, embedding_dim), as in torch.

        >>> import torch
        >>> from brevitas.nn import QuantEmbedding
        >>> QuantEmbedding.from_pretrained(torch.eye(3), weight_bit_width=2)(torch.tensor(1))
        tensor([0., 1., 0.])

        ``kwargs`` are the further arguments of the constructor.
        """
        if embeddings.dim() != 2:
            raise QuantConfigError(
                f"{cls.__name__}.from_pretrained: embeddings of shape {tuple(embeddings.shape)}; expected two dims, "
                "(num_embeddings, embedding_dim)"
            )
        rows, columns = embeddings.shape
        return cls(
            rows,
            columns,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight=embeddings,
            _freeze=freeze,
            **kwargs,
        )

    def forward(self, input: Tensor) -> Any:
        """The vectors at the indices ``input``.

        Raises:
            QuantMetadataError: ``return_quant_tensor=True``, and the table has no integers or not one scale.
        """
        if self.max_norm is not None:
            rows = torch.arange(self.num_embeddings, device=input.device) if self.is_weight_quant_enabled else input
            with torch.no_grad():
                torch.embedding_renorm_(self.weight, rows.contiguous(), self.max_norm, self.norm_type)
        weight = self.weight_quant(self.weight)
        table = weight.value if isinstance(weight, QuantTensor) else weight
        out = F.embedding(
            input, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse
        )
        return self.pack_output(self._with_metadata(out, weight) if self.return_quant_tensor else out)

    def _with_metadata(self, out: Tensor, weight: Tensor | QuantTensor) -> QuantTensor:
        """``out`` on the grid of the table."""
        fixes = ("set return_quant_tensor=False here",)
        if not isinstance(weight, QuantTensor):
            missing = self._no_integers("return_quant_tensor=True")
            raise self.metadata_error(missing, None, "set weight_quant= to an integer quantizer", *fixes)
        if weight.scale.numel() > 1 or weight.zero_point.numel() > 1:
            raise self.metadata_error(
                "return_quant_tensor=True needs one scale for the whole table, and "
                f"{self.weight_quant.quant_injector.__name__} has one of shape {tuple(weight.scale.shape)}: which "
                "scales an output has would depend on the indices",
                None,
                "set weight_scaling_per_output_type='tensor'",
                *fixes,
            )
        scale, zero_point = weight.scale.reshape(()), weight.zero_point.reshape(())
        return QuantTensor.unchecked(
            out, scale, zero_point, weight.bit_width, weight.signed, self.training, weight.source
        )
