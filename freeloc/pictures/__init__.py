"""Plans, profiles and measurements as figures.

Each function returns a matplotlib figure. Show it in a notebook, or save it as a PNG file with `write`.
"""

from freeloc.pictures.charts import curves, drift_chart, scatter
from freeloc.pictures.figures import write
from freeloc.pictures.measurements import layer_bars, sensitivity_map
from freeloc.pictures.plans import plan_tables
from freeloc.pictures.profiles import layer_chart, policy_colours

__all__ = [
    "curves",
    "drift_chart",
    "layer_bars",
    "layer_chart",
    "plan_tables",
    "policy_colours",
    "scatter",
    "sensitivity_map",
    "write",
]
