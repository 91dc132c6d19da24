"""The table of editors by name. A new editor is one line here and one file in its family's folder."""

from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.nse import NSE
from errata.editors.closed_form.rome import ROME, RROME
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.editors.editor import Editor
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.fine_tuning.locft import LocFT
from errata.editors.fine_tuning.lora import LoRA
from errata.editors.hypernet.malmen import MALMEN
from errata.editors.hypernet.mend import MEND
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.memory_based.answer import AnswerMemory
from errata.editors.memory_based.elder import ELDER
from errata.editors.memory_based.ike import IKE
from errata.editors.memory_based.recipe import RECIPE
from errata.editors.memory_based.rtd import RTD
from errata.editors.memory_based.scr import SCR
from errata.editors.memory_based.serac import SERAC
from errata.editors.memory_based.state import StateMemory
from errata.editors.memory_based.swea import SWEA
from errata.editors.wrappers.blue import BLUE
from errata.editors.wrappers.nas import NAS
from errata.editors.wrappers.oedit import OEdit, OEditPlus
from errata.editors.wrappers.prune import PRUNE
from errata.editors.wrappers.rect import RECT
from errata.editors.wrappers.sphere import SPHERE

EDITORS: dict[str, type[Editor]] = {
    "RLEdit": RLEdit,
    "MALMEN": MALMEN,
    "MEND": MEND,
    "UltraEdit": UltraEdit,
    "ROME": ROME,
    "R-ROME": RROME,
    "MEMIT": MEMIT,
    "RECT": RECT,
    "PRUNE": PRUNE,
    "AlphaEdit": AlphaEdit,
    "BLUE": BLUE,
    "NAS": NAS,
    "SPHERE": SPHERE,
    "NSE": NSE,
    "O-Edit": OEdit,
    "O-Edit+": OEditPlus,
    "FT-L": FTL,
    "LocFT": LocFT,
    "LoRA": LoRA,
    "state": StateMemory,
    "SCR": SCR,
    "IKE": IKE,
    "answer": AnswerMemory,
    "RTD": RTD,
    "SWEA": SWEA,
    "RECIPE": RECIPE,
    "SERAC": SERAC,
    "ELDER": ELDER,
}
