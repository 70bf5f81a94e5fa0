#ifndef TOEDIT_SIGNALS_H
#define TOEDIT_SIGNALS_H

/* The process's signal handlers, kept while foreign code is loaded that puts its own in their place: CUDA's provider does, and
 * neither Go (whose handlers need an alternate stack) nor Ctrl-C works afterwards. */
struct toedit_signals;

/* NULL where there is no memory; restoring that does nothing. */
struct toedit_signals* toedit_signals_keep(void);

/* Puts back every handler that has changed since, and frees what was kept. */
void toedit_signals_restore(struct toedit_signals* kept);

#endif
