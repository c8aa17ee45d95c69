"""Image generation: denoising diffusion (DDPM) on handwritten digits, image files and CelebA."""

from recipes.diffusion.celeba import CelebAImages as CelebAImages
from recipes.diffusion.digits import DigitImages as DigitImages
from recipes.diffusion.grids import SampleGrids as SampleGrids
from recipes.diffusion.image_files import ImageFiles as ImageFiles
from recipes.diffusion.model import NoisePredictor as NoisePredictor
