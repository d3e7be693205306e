from fastff.ops.descend.op import descend, global_rows

__all__ = ["descend", "global_rows"]
