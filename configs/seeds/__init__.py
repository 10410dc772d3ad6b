"""Recipes of earlier projects on these films, as configs that run; docs/experiments.md says what each gives here."""
