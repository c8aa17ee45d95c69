"""Adam-mini for PyTorch Lightning: one callback halves the optimizer's memory."""

from lightning_adam_mini._warnings import AdamMiniWarning as AdamMiniWarning
from lightning_adam_mini.callbacks import AdamMiniCallback as AdamMiniCallback
from lightning_adam_mini.callbacks import BAdam as BAdam
from lightning_adam_mini.callbacks import Monitoring as Monitoring
from lightning_adam_mini.callbacks import PartitionAudit as PartitionAudit
from lightning_adam_mini.callbacks import SNRMonitor as SNRMonitor
from lightning_adam_mini.combine import GaLore as GaLore
from lightning_adam_mini.combine import ScheduleFree as ScheduleFree
from lightning_adam_mini.combine import Sophia as Sophia
from lightning_adam_mini.combine import combine_ as combine_
from lightning_adam_mini.detection import ModelReport as ModelReport
from lightning_adam_mini.detection import inspect_model as inspect_model
from lightning_adam_mini.layout import BlockLayout as BlockLayout
from lightning_adam_mini.matrix_layout import MatrixLayout as MatrixLayout
from lightning_adam_mini.optim import AdamMini as AdamMini
from lightning_adam_mini.optim import bind_zero_ as bind_zero_
from lightning_adam_mini.optim import convert_optimizer_ as convert_optimizer_
from lightning_adam_mini.optim import find_flat_shards as find_flat_shards
from lightning_adam_mini.optim import to_adamw_state_dict as to_adamw_state_dict
from lightning_adam_mini.partition import PartitionStrategy as PartitionStrategy
from lightning_adam_mini.partition import partition_model as partition_model
