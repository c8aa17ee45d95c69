from lightning_adam_mini.optim.adam_mini import AdamMini as AdamMini
from lightning_adam_mini.optim.conversion import to_adamw_state_dict as to_adamw_state_dict
from lightning_adam_mini.optim.convert import convert_optimizer_ as convert_optimizer_
from lightning_adam_mini.optim.functional import adam_mini as adam_mini
from lightning_adam_mini.optim.memory import adamw_bytes as adamw_bytes
from lightning_adam_mini.optim.memory import state_bytes as state_bytes
from lightning_adam_mini.optim.shards.flat import find_flat_shards as find_flat_shards
from lightning_adam_mini.optim.zero import bind_zero_ as bind_zero_
