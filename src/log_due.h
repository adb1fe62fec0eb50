/* log_due.h: what would be said again and again is said once a minute */
#ifndef EVBUS_LOG_DUE_H
#define EVBUS_LOG_DUE_H

extern bool evbus_log_due(const char *what, int64 *left_out);
extern bool evbus_log_error_due(const ErrorData *edata);

#endif
