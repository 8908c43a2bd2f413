"""The vocabulary that everything else is written in.

Types and constrained numbers (`types`), arrays (`arrays`), keyed random numbers (`rng`), ticks (`clock`), errors that
name key, file and line (`errors`), parts and how their fields are read (`registry`, `fields`), YAML with line numbers
(`documents`), tensors row by row on disk (`row_files`), and the stochastic first-order oracle that a task gives to an
algorithm (`oracle`, `job`). It may import nothing else of fedsim. Start with `oracle`: an algorithm sees nothing more
of a model and its data.
"""
