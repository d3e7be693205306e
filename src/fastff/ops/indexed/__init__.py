from fastff.ops.indexed.function import indexed_feedforward

__all__ = ["indexed_feedforward"]
