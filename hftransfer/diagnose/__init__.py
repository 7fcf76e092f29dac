"""Is the domain near, what was forgotten, is it fair: judgements of data and models, measured."""
