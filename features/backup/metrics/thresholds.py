"""The built-in notice of backups: the condition of the alert rule of the same name."""

import operator

from features.backup.instruments import BACKUP_AGE
from services.metrics.alerting.readings import Threshold, fold

THRESHOLDS = (Threshold("backup_old", fold(max, BACKUP_AGE), operator.gt, 26 * 3600, "{:,.0f} s", gauges=(BACKUP_AGE,)),)
