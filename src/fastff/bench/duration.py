"""Times as people read them."""

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    factor, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    value = seconds / factor
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"
