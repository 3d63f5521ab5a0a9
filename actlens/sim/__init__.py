"""A simulated arm and a red cube: the scene, its expert, and recordings in LeRobot's format.

Import from the modules: `environment.PickCube`, `expert.plan`, `regions.Region`, `rollout.rollout`.
"""
