from fastff.ops.product_keys.function import product_keys

__all__ = ["product_keys"]
