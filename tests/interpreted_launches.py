"""Triton's interpreter replaces its language's functions for every function that a kernel calls; once is enough."""

from typing import Any

import pytest


def patch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a launch replace what is not yet replaced, which takes a third off the time of tests."""
    import triton.language as tl
    from triton.runtime import interpreter

    replace, replaced = interpreter._patch_lang, set()

    def patch(function: Any) -> Any:
        modules = {module.__name__ for module in (tl, tl.core) if module in function.__globals__.values()}
        if modules and modules <= replaced:
            return interpreter._LangPatchScope()
        scope = replace(function)
        if not replaced:  # the launch's own: it puts everything back at its end
            restore = scope.restore
            scope.restore = lambda: (restore(), replaced.clear())
        replaced.update(modules)
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", patch)
