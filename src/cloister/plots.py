"""Curves of a training as a PNG. The workload draws them into its sealed output, the client from what a job told.

matplotlib draws; it comes with the extras ``train`` and ``plot``. No display is needed.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import Unavailable

__all__ = ["Curve", "draw_curves"]

Curve = Sequence[tuple[int, float]]
_WIDTH, _HEIGHT, _DPI = 8.0, 4.5, 100  # inches, inches, dots an inch
_COLOURS = ("#1f4e79", "#c0504d", "#4f8f4f", "#8064a2", "#b8860b", "#4bacc6")


def draw_curves(title: str, left: Mapping[str, Curve], right: Mapping[str, Curve]) -> bytes:
    """A PNG of curves over steps: those of ``left`` by the left axis, those of ``right`` (thin) by the right one.

    A curve of one point is drawn as a dot. Raises Unavailable (``plot.library``) where matplotlib isn't installed.
    """
    # Else the library would make a folder in the home of whoever runs this.
    os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "cloister-matplotlib"))
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Unavailable(
            "plot.library", "Drawing needs matplotlib; install it with: pip install 'cloister[plot]'."
        ) from None
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    lines = [_line(axes, name, curve, _COLOURS[i % 6], 1.8) for i, (name, curve) in enumerate(left.items())]
    axes.set_ylabel(", ".join(left), parse_math=False)
    if right:
        other = axes.twinx()
        colours = _COLOURS[len(left) % 6 :] + _COLOURS
        lines += [_line(other, name, curve, colours[i % 6], 0.9) for i, (name, curve) in enumerate(right.items())]
        other.set_ylabel(", ".join(right), parse_math=False)
    if lines:
        axes.legend(handles=lines, loc="best", fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _line(axes: Any, name: str, curve: Curve, colour: str, width: float) -> Any:
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    marker = "o" if len(curve) < 2 else None
    return axes.plot(steps, values, color=colour, linewidth=width, marker=marker, label=name)[0]
