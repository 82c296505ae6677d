"""Training: one readable loop, and what a run leaves behind."""

from gainstage.training.files import load_weights as load_weights
from gainstage.training.files import save_weights as save_weights
from gainstage.training.loop import fit as fit
from gainstage.training.recommendation import TrainingPlan as TrainingPlan
from gainstage.training.recommendation import recommend_training as recommend_training
from gainstage.training.run import Run as Run
