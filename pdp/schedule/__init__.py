"""How much is pruned, when and where: training time, schedules, and the allocation of a budget to layers."""
