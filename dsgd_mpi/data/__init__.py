"""Images and their labels: files, conversion of public data sets, augmentation, and batches for every rank."""

from dsgd_mpi.data.augment import Recipe
from dsgd_mpi.data.formats import Dataset, Split, open_dataset
from dsgd_mpi.data.loader import Batches, Course, evaluation_batches

__all__ = ["Batches", "Course", "Dataset", "Recipe", "Split", "evaluation_batches", "open_dataset"]
