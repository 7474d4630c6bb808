"""How much is pruned, when and where: training time, the shapes of schedules, the allocation of a budget."""
