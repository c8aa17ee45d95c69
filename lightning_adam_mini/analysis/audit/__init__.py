"""Whether a partition follows the Hessian and the second moments of a model."""

from lightning_adam_mini.analysis.audit.audit import audit_partition as audit_partition
from lightning_adam_mini.analysis.audit.audit import audit_partitions as audit_partitions
from lightning_adam_mini.analysis.audit.report import AuditReport as AuditReport
from lightning_adam_mini.analysis.audit.verdict import Finding as Finding
from lightning_adam_mini.analysis.audit.verdict import Verdict as Verdict
