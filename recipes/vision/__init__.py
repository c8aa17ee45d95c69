"""Image classification: any timm model, on handwritten digits, CIFAR or a tree of image files."""

from recipes.vision.cifar import CIFARData as CIFARData
from recipes.vision.digits import DigitsData as DigitsData
from recipes.vision.image_folder import ImageFolderData as ImageFolderData
from recipes.vision.model import ImageClassifier as ImageClassifier
