"""The planner on a robot: a ROS 2 node, and bags to evaluate it with."""
