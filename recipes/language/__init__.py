"""Language models: a GPT of our own and those of Hugging Face, on Python's own text, text files and nanoGPT's tokens."""

from recipes.language.fine_tuned import FineTunedModel as FineTunedModel
from recipes.language.hugging_face import HuggingFaceModel as HuggingFaceModel
from recipes.language.model import GPTModel as GPTModel
from recipes.language.preferences import PreferredText as PreferredText
from recipes.language.remax import ReMaxModel as ReMaxModel
from recipes.language.reward import RewardModel as RewardModel
from recipes.language.samples import SampleText as SampleText
from recipes.language.text import PythonText as PythonText
from recipes.language.text import TextFolder as TextFolder
from recipes.language.token_files import TokenFiles as TokenFiles
