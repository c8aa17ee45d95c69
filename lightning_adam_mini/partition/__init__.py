"""Which elements of each parameter share a second moment: strategies, their options and per-parameter overrides."""

from lightning_adam_mini.partition.adam_mini import AdamMiniPartition as AdamMiniPartition
from lightning_adam_mini.partition.adam_mini import AdamMiniV1Partition as AdamMiniV1Partition
from lightning_adam_mini.partition.baselines import AdaLayerNormLastPartition as AdaLayerNormLastPartition
from lightning_adam_mini.partition.baselines import AdamPartition as AdamPartition
from lightning_adam_mini.partition.baselines import TensorPartition as TensorPartition
from lightning_adam_mini.partition.factored import AutoPartition as AutoPartition
from lightning_adam_mini.partition.factored import FactoredPartition as FactoredPartition
from lightning_adam_mini.partition.muon import MuonPartition as MuonPartition
from lightning_adam_mini.partition.muon import NorMuonPartition as NorMuonPartition
from lightning_adam_mini.partition.overrides import Override as Override
from lightning_adam_mini.partition.partition_model import partition_model as partition_model
from lightning_adam_mini.partition.rules import Rule as Rule
from lightning_adam_mini.partition.rules import SlimAdamRules as SlimAdamRules
from lightning_adam_mini.partition.slim_adam import SlimAdamAutoPartition as SlimAdamAutoPartition
from lightning_adam_mini.partition.slim_adam import SlimAdamPartition as SlimAdamPartition
from lightning_adam_mini.partition.slim_adam import SlimAdamTable3Partition as SlimAdamTable3Partition
from lightning_adam_mini.partition.strategy import STRATEGIES as STRATEGIES
from lightning_adam_mini.partition.strategy import Granularity as Granularity
from lightning_adam_mini.partition.strategy import PartitionStrategy as PartitionStrategy
from lightning_adam_mini.partition.strategy import make_strategy as make_strategy
from lightning_adam_mini.partition.strategy import register_strategy as register_strategy
