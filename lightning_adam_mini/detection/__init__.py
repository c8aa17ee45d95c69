"""What kind of network a module is, and what each of its parameters is for."""

from lightning_adam_mini.detection.inspect import inspect_model as inspect_model
from lightning_adam_mini.detection.names import parameter_names as parameter_names
from lightning_adam_mini.detection.registry import register_module as register_module
from lightning_adam_mini.detection.report import ModelReport as ModelReport
from lightning_adam_mini.detection.report import ParameterReport as ParameterReport
from lightning_adam_mini.detection.report import PartReport as PartReport
from lightning_adam_mini.detection.roles import Architecture as Architecture
from lightning_adam_mini.detection.roles import Role as Role
