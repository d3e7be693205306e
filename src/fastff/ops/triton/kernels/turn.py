"""How a kernel begins that may be launched before the one before it has ended."""

import triton
import triton.language as tl


@triton.jit
def await_turn(EARLY: tl.constexpr):
    """The first thing that each kernel does. EARLY: on cards that can, the next kernel is brought up while this one
    runs, and waits here until all that came before it has ended and what that wrote can be read.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
