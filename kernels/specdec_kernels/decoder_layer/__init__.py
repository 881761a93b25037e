from .cpu import Angles, Buffers, CpuDecoderLayer
from .products import PlainProduct, PrepackedProduct, can_prepack
from .reference import decoder_layer_reference
from .weights import LayerWeights, LinearWeights, NormWeights

__all__ = [
    "Angles",
    "Buffers",
    "CpuDecoderLayer",
    "LayerWeights",
    "LinearWeights",
    "NormWeights",
    "PlainProduct",
    "PrepackedProduct",
    "can_prepack",
    "decoder_layer_reference",
]
