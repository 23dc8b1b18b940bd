"""Plans, profiles and measurements as figures.

Each function returns a matplotlib figure, for a notebook or for `write`, which makes a PNG file of it.
"""

from freeloc.pictures.charts import curves, drift_chart, scatter
from freeloc.pictures.figures import write
from freeloc.pictures.measurements import sensitivity_map
from freeloc.pictures.plans import plan_tables
from freeloc.pictures.profiles import layer_chart, policy_colours

__all__ = [
    "curves",
    "drift_chart",
    "layer_chart",
    "plan_tables",
    "policy_colours",
    "scatter",
    "sensitivity_map",
    "write",
]
