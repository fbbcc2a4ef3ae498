/*
 * The part of Slurm's SPANK interface that the plugin uses, and no more.
 *
 * Written from the interface that spank(7) and the installed <slurm/spank.h> describe: names, types
 * and numbers only. They have been the same in every release from 20.02 to 26.05, so one plugin
 * serves them all and no Slurm header is needed to build it. bindgen.sh turns this file into
 * src/spank_sys.rs; check-abi.sh compares it with an installed <slurm/spank.h>, which then
 * provides the types.
 */
#ifndef SHIFTER_CHECK_ABI
typedef struct spank_handle *spank_t;
typedef int spank_err_t;

enum spank_item {
	S_JOB_UID = 0,
	S_JOB_GID = 1,
	S_JOB_ID = 2,
	S_JOB_STEPID = 3,
	S_JOB_ARGV = 9,
	S_JOB_ENV = 10,
	S_TASK_ID = 11,
};
typedef enum spank_item spank_item_t;

enum spank_context {
	S_CTX_ERROR = 0,
	S_CTX_LOCAL = 1,
	S_CTX_REMOTE = 2,
	S_CTX_ALLOCATOR = 3,
	S_CTX_SLURMD = 4,
	S_CTX_JOB_SCRIPT = 5,
};
typedef enum spank_context spank_context_t;

typedef int (*spank_opt_cb_f)(int val, const char *optarg, int remote);

struct spank_option {
	char *name;
	char *arginfo;
	char *usage;
	int has_arg;
	int val;
	spank_opt_cb_f cb;
};
#endif

spank_context_t spank_context(void);
spank_err_t spank_option_register(spank_t spank, struct spank_option *opt);
spank_err_t spank_get_item(spank_t spank, spank_item_t item, ...);
spank_err_t spank_getenv(spank_t spank, const char *var, char *buf, int len);
spank_err_t spank_setenv(spank_t spank, const char *var, const char *val, int overwrite);
spank_err_t spank_unsetenv(spank_t spank, const char *var);
spank_err_t spank_job_control_setenv(spank_t spank, const char *name, const char *value,
				     int overwrite);

void slurm_info(const char *format, ...);
void slurm_error(const char *format, ...);
void slurm_spank_log(const char *format, ...);
