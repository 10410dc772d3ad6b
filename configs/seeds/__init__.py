"""Recipes of earlier projects on these films, as configs that run; docs/experiments.md has what some gave here."""
