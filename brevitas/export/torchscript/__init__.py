"""PyTorch's own quantized operators: a traced, frozen TorchScript module of prepacked layers.

torch announces that quantized tensors will be removed; all that depends on them stands in this package.
"""
