"""What a layer's name means in a language model if it stands there without options."""

RECOMMENDED = {
    "tree": "depth=9,leaf_width=1,trees=16,rank={rank},contributing=false,leaf_bias=false,master_width={features}",
    "peer": "experts=8281,heads=8,top_k=4,key_features=32,rank={rank},master_width={features}",
}
CAUSAL = {"tree": ",standardise=true"}  # what is better in decoders, but not in masked models


def with_options(layer: str, features: int, *, masked: bool = False) -> str:
    """`layer`, or if it is "tree" or "peer" alone the form that was best in small models, see docs/guides/choose.md.

    Args:
        layer: `name:option=value,...` as of `fastff.nn.build_layer`, or a name.
        features: of input and output.
        masked: whether it is for a masked model, rather than a decoder.
    """
    if layer not in RECOMMENDED:
        return layer
    options = RECOMMENDED[layer].format(rank=max(1, features // 2), features=features)
    return f"{layer}:{options}" + ("" if masked else CAUSAL.get(layer, ""))
