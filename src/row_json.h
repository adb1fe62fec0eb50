/* row_json.h: rows of one table as JSON, whatever the session's settings */
#ifndef EVBUS_ROW_JSON_H
#define EVBUS_ROW_JSON_H

#include "evbus.h"

#include "executor/tuptable.h"
#include "lib/stringinfo.h"

typedef struct EvbusRowColumn EvbusRowColumn;

typedef struct EvbusRowJson
{
	int			n_columns;
	EvbusRowColumn *columns;	/* those of the object */
	int			n_keys;
	int		   *keys;			/* among them, by index */
	bool		by_settings;	/* one of them is printed as settings say */
	StringInfoData value;
} EvbusRowJson;

extern void evbus_row_json_init(EvbusRowJson *r, TupleDesc desc, const AttrNumber *columns, int n_columns,
								const AttrNumber *keys, int n_keys);
extern int	evbus_row_json_settings(const EvbusRowJson *r);
extern void evbus_row_json_print(EvbusRowJson *r, StringInfo out, TupleTableSlot *slot);
extern text *evbus_row_json_key(EvbusRowJson *r, TupleTableSlot *slot);
extern bool evbus_row_json_same(const EvbusRowJson *r, TupleTableSlot *a, TupleTableSlot *b);

#endif
