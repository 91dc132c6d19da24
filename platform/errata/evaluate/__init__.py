"""Evaluation of an edited model on the questions of its edits, by generation, teacher forcing, likelihood and perplexity.

Files in reading order: answers (comparison of texts), questions (what an edit asks), scorecard (shares of right answers),
teacher_forcing, likelihood, perplexity, fluency, bootstrap (confidence intervals), general_ability (lm-eval).
"""
