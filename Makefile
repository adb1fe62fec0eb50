# evbus is built with PGXS: make, make install, make installcheck.
# make demo, test, chaos, model, bench, bench-check and soak need nothing installed before: they start with tool/setup.

EXTENSION = evbus
MODULE_big = evbus
PGFILEDESC = "evbus - event bus inside PostgreSQL"
OBJS := $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA := $(sort $(wildcard sql/evbus--*.sql))
DOCS := $(sort $(wildcard share/*))
PG_CPPFLAGS = -I$(srcdir)/src
SHLIB_LINK = -lzstd

# installcheck wants a server with shared_preload_libraries = 'evbus'.
REGRESS := $(filter-out evbus--%,$(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql))))
ISOLATION := $(patsubst test/isolation/specs/%.spec,%,$(sort $(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=$(srcdir)/test/isolation
PROVE_TESTS := $(sort $(wildcard test/t/*.pl))
ifneq ($(PROVE_TESTS),)
TAP_TESTS = 1
endif

PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

# Warnings are errors in our files; PostgreSQL's own headers count as the system's.
ifdef WERROR
PG_CPPFLAGS += -isystem $(shell $(PG_CONFIG) --includedir-server)
PG_CFLAGS += -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare
endif

# Places at which tests may stop, fail or kill a process (src/point.h); for tests only.
ifdef POINTS
PG_CPPFLAGS += -DEVBUS_POINTS
endif

ifneq ($(PGXS),)

# PostgreSQL was built with LLVM, but bitcode is of use only where clang is.
CLANG_BUILT_WITH := $(shell sed -n 's/^CLANG = //p' $(dir $(PGXS))../Makefile.global)
ifeq ($(shell command -v $(or $(CLANG),$(CLANG_BUILT_WITH),clang)),)
override with_llvm = no
endif

include $(PGXS)

$(OBJS) $(OBJS:.o=.bc): $(wildcard src/*.h)

else

all install uninstall installcheck:
	@echo "pg_config was not found: run tool/setup, or give PG_CONFIG=/path/to/pg_config" >&2; exit 1
clean:

endif

.PHONY: demo test bench bench-check soak chaos model versions
demo test:
	@tool/$@

# make bench; make bench QUICK=1; make bench PGMQ_SQL=/path/to/pgmq.sql; make bench QUESTIONS='latency storage'
bench:
	@tool/setup bench
	@bench/run $(QUESTIONS)

soak:
	@test -x bench/soak || { echo "there is no soak in this checkout" >&2; exit 1; }
	@tool/setup
	@bench/soak

# make bench-check; make bench-check UPDATE=1
bench-check:
	@tool/setup
	@bench/check $(if $(filter-out 0,$(UPDATE)),--update)

# make chaos; make chaos CYCLES=200 SEED=7; make chaos SECONDS=3600; make chaos MUTANTS=all, or names of some
CHAOS = $(if $(MUTANTS),--mutants $(filter-out all,$(MUTANTS))) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(CYCLES),--cycles $(CYCLES)) $(if $(SEED),--seed $(SEED))
chaos:
	@tool/setup
	@test/chaos/run $(CHAOS)

# make versions PG_CONFIGS="/path/to/pg16/bin/pg_config /path/to/pg17/bin/pg_config"
versions:
	@tool/versions $(PG_CONFIGS)

# make model; make model ONLY='late flags_before_tail'
model:
	@tool/setup
	@model/run $(ONLY)
