"""Plans, profiles and measurements as figures."""

from freeloc.pictures.figures import curves, drift_chart, layer_chart, plan_tables, scatter, sensitivity_map, write

__all__ = ["curves", "drift_chart", "layer_chart", "plan_tables", "scatter", "sensitivity_map", "write"]
