"""What a model and its optimizer are like: how much memory they take, what of it second moments need, and what its Hessian says."""

from lightning_adam_mini.analysis.audit import AuditReport as AuditReport
from lightning_adam_mini.analysis.audit import audit_partition as audit_partition
from lightning_adam_mini.analysis.audit import audit_partitions as audit_partitions
from lightning_adam_mini.analysis.derive_rules import derive_rules as derive_rules
from lightning_adam_mini.analysis.memory import ModelMemory as ModelMemory
from lightning_adam_mini.analysis.memory import StateMemory as StateMemory
from lightning_adam_mini.analysis.memory import count_memory as count_memory
from lightning_adam_mini.analysis.snr import measure_snr as measure_snr
from lightning_adam_mini.analysis.snr import subset_layouts as subset_layouts
from lightning_adam_mini.analysis.snr_history import SNRHistory as SNRHistory
from lightning_adam_mini.analysis.snr_history import average_snr as average_snr
