"""Part IV: training in the loop: lottery tickets, gradual schedules, and recovery that keeps the zeros."""
