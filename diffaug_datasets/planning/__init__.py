"""From a recipe to a plan on disk: the catalogue of names, preparing, and what it will cost.

The names on the way, each for one thing:

- a *config name* (`cub_5shot_diffii`) or a *preset* (`diff_ii@cub_5shot`) stands for a `Recipe` with its defaults;
  a recipe's `config` holds the parameters of its method alone;
- a *builder* knows one dataset (`BuilderFacts`); a *source* is a place of its images; a `Listing` is what lies there by
  name, a `Survey` what people should know of it, an `Attribution` what it states of an image's origin;
- a `RealSet` has the images of a recipe, once all were read: a `SourceTable` for each split;
- a `Subset` is which of them the recipe's *protocol* lets the run see;
- a `PlanSpec` is what the method may know when it draws the `Plan`;
- a `Prepared` is all of it together, from which `price` estimates the cost and `write_run` makes a run folder.
"""
