"""The optimizers that are compared. A recipe trains with one alone by ``--model.optimizer experiments.rivals.lion``."""

from experiments.rivals.entry import BASELINE as BASELINE
from experiments.rivals.entry import Entrant as Entrant
from experiments.rivals.entry import enter as enter
from experiments.rivals.entry import remarks as remarks
from experiments.rivals.entry import select as select
from experiments.rivals.entry import without_compiling as without_compiling
from experiments.rivals.rival import Rival as Rival
from experiments.rivals.roster import OURS as OURS
from experiments.rivals.roster import RIVALS as RIVALS
from experiments.rivals.roster import find_rival as find_rival
from recipes.optim import Builder


def __getattr__(name: str) -> Builder:
    """What makes the rival of a name; `find_rival` says what is missing for it."""
    if name not in RIVALS:
        raise AttributeError(f"there is none of this name among {', '.join(RIVALS)}")
    return find_rival(name).build
