/* A client on libpurple (Pidgin's library) that logs in over BOSH, greets a friend, echoes what the
 * friend writes until that is "logout", and logs out. tests/clients.rs compiles and drives it.
 *
 *   purple URL DOMAIN NAME PASSWORD FRIEND
 *
 * It keeps what libpurple writes in the working directory. */

#include <glib.h>
#include <purple.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static GMainLoop *loop;
static PurpleAccount *account;
static const char *friend_jid;
static int status = 1;
static gboolean leaving;

/* --- libpurple's event loop on GLib's */

typedef struct {
    PurpleInputFunction function;
    gpointer data;
} Watch;

static gboolean ready(GIOChannel *channel, GIOCondition condition, gpointer data) {
    Watch *watch = data;
    int purple = 0;
    if (condition & (G_IO_IN | G_IO_HUP | G_IO_ERR))
        purple |= PURPLE_INPUT_READ;
    if (condition & (G_IO_OUT | G_IO_HUP | G_IO_ERR | G_IO_NVAL))
        purple |= PURPLE_INPUT_WRITE;
    watch->function(watch->data, g_io_channel_unix_get_fd(channel), purple);
    return TRUE;
}

static guint input_add(int fd, PurpleInputCondition wanted, PurpleInputFunction function,
                       gpointer data) {
    GIOChannel *channel = g_io_channel_unix_new(fd);
    Watch *watch = g_new(Watch, 1);
    int condition = G_IO_HUP | G_IO_ERR | G_IO_NVAL;
    guint id;
    if (wanted & PURPLE_INPUT_READ)
        condition |= G_IO_IN;
    if (wanted & PURPLE_INPUT_WRITE)
        condition |= G_IO_OUT;
    watch->function = function;
    watch->data = data;
    id = g_io_add_watch_full(channel, G_PRIORITY_DEFAULT, condition, ready, watch, g_free);
    g_io_channel_unref(channel);
    return id;
}

static PurpleEventLoopUiOps event_loop = {
    .timeout_add = g_timeout_add,
    .timeout_remove = g_source_remove,
    .input_add = input_add,
    .input_remove = g_source_remove,
    .timeout_add_seconds = g_timeout_add_seconds,
};

static PurpleCoreUiOps core;

/* --- what the client does */

static void signed_on(PurpleConnection *connection) {
    const char *id = purple_account_get_username(account);
    printf("logged in as %s\n", id);
    serv_send_im(connection, friend_jid, "ready", 0);
}

static gboolean leave(gpointer data) {
    (void)data;
    purple_account_disconnect(account);
    return FALSE;
}

static void received(PurpleAccount *to, const char *sender, const char *message) {
    /* Markup in, markup out. */
    char *text = purple_markup_strip_html(message);
    if (strcmp(text, "logout") == 0) {
        leaving = TRUE;
        g_idle_add(leave, NULL);
    } else {
        char *answer = g_strconcat("echo: ", message, NULL);
        serv_send_im(purple_account_get_connection(to), sender, answer, 0);
        g_free(answer);
    }
    g_free(text);
}

static void failed(PurpleConnection *connection, PurpleConnectionError error, const char *why) {
    (void)connection;
    printf("connection error %d: %s\n", error, why);
    g_main_loop_quit(loop);
}

static gboolean quit(gpointer data) {
    (void)data;
    g_main_loop_quit(loop);
    return FALSE;
}

static void signed_off(PurpleConnection *connection) {
    (void)connection;
    status = leaving ? 0 : 1;
    /* What was written last is still on its way. */
    g_timeout_add(500, quit, NULL);
}

int main(int count, char **arguments) {
    static int handle;
    char *id;
    if (count != 6)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    friend_jid = arguments[5];
    loop = g_main_loop_new(NULL, FALSE);

    purple_util_set_user_dir(".");
    purple_debug_set_enabled(TRUE);
    purple_debug_set_verbose(TRUE);
    purple_core_set_ui_ops(&core);
    purple_eventloop_set_ui_ops(&event_loop);
    if (!purple_core_init("bosphorus-test"))
        return 2;
    purple_set_blist(purple_blist_new());

    purple_signal_connect(purple_connections_get_handle(), "signed-on", &handle,
                          PURPLE_CALLBACK(signed_on), NULL);
    purple_signal_connect(purple_connections_get_handle(), "signed-off", &handle,
                          PURPLE_CALLBACK(signed_off), NULL);
    purple_signal_connect(purple_connections_get_handle(), "connection-error", &handle,
                          PURPLE_CALLBACK(failed), NULL);
    purple_signal_connect(purple_conversations_get_handle(), "received-im-msg", &handle,
                          PURPLE_CALLBACK(received), NULL);

    id = g_strdup_printf("%s@%s", arguments[3], arguments[2]);
    account = purple_account_new(id, "prpl-jabber");
    g_free(id);
    purple_account_set_password(account, arguments[4]);
    purple_account_set_string(account, "bosh_url", arguments[1]);
    purple_account_set_string(account, "connection_security", "opportunistic_tls");
    purple_account_set_bool(account, "auth_plain_in_clear", TRUE);
    purple_accounts_add(account);
    purple_account_set_enabled(account, "bosphorus-test", TRUE);
    purple_savedstatus_activate(purple_savedstatus_new(NULL, PURPLE_STATUS_AVAILABLE));
    g_main_loop_run(loop);
    return status;
}
