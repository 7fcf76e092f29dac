"""What can be known to be wrong with a recipe without loading a library for it."""
from hftransfer.recipe import Recipe
def check_inputs(recipe: Recipe) -> None:
    pass
