"""Image classification: any timm model, on handwritten digits or on a tree of image files."""

from recipes.vision.digits import DigitsData as DigitsData
from recipes.vision.image_folder import ImageFolderData as ImageFolderData
from recipes.vision.model import ImageClassifier as ImageClassifier
