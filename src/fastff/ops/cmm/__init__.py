from fastff.ops.cmm.op import cmm_in, cmm_out, cmm_outer

__all__ = ["cmm_in", "cmm_out", "cmm_outer"]
