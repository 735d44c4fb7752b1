// A client on gloox that logs in over BOSH, greets a friend, echoes what the friend writes until
// that is "logout", and logs out. tests/clients.rs compiles and drives it.
//
//   gloox MODE HOST PORT PATH DOMAIN NAME PASSWORD FRIEND
//
// MODE: `pipelining`, gloox's own first choice, or `persistent`.

#include <gloox/client.h>
#include <gloox/connectionbosh.h>
#include <gloox/connectionlistener.h>
#include <gloox/connectiontcpclient.h>
#include <gloox/loghandler.h>
#include <gloox/message.h>
#include <gloox/messagehandler.h>
#include <gloox/presence.h>

#include <cstdlib>
#include <iostream>
#include <string>

using namespace gloox;

class Echo : public ConnectionListener, public MessageHandler, public LogHandler {
public:
    Echo(Client &client, const JID &peer) : client(client), peer(peer) {}

    void onConnect() override {
        std::cout << "logged in as " << client.jid().full() << std::endl;
        client.send(Presence(Presence::Available, peer));
        client.send(Message(Message::Chat, peer, "ready"));
    }

    void onDisconnect(ConnectionError error) override {
        std::cout << "disconnected: " << error << ", stream error " << client.streamError()
                  << ", authentication error " << client.authError() << std::endl;
        clean = leaving && error == ConnUserDisconnected;
    }

    bool onTLSConnect(const CertInfo &) override { return true; }

    void handleMessage(const Message &message, MessageSession *) override {
        if (message.body().empty())
            return;
        if (message.body() == "logout")
            leaving = true;
        else
            client.send(Message(Message::Chat, message.from(), "echo: " + message.body()));
    }

    void handleLog(LogLevel, LogArea, const std::string &text) override {
        std::cout << text << std::endl;
    }

    Client &client;
    const JID peer;
    bool leaving = false;
    bool clean = false;
};

int main(int count, char **arguments) {
    if (count != 9)
        return 2;
    const std::string mode = arguments[1], host = arguments[2], path = arguments[4];
    const std::string domain = arguments[5], name = arguments[6];
    Client client(JID(name + "@" + domain), arguments[7]);
    client.setTls(TLSDisabled);
    client.setCompression(false);
    client.disableRoster();

    Echo echo(client, JID(arguments[8]));
    client.registerConnectionListener(&echo);
    client.registerMessageHandler(&echo);
    client.logInstance().registerLogHandler(LogLevelDebug, LogAreaAll, &echo);

    auto *tcp = new ConnectionTCPClient(client.logInstance(), host, std::atoi(arguments[3]));
    auto *bosh = new ConnectionBOSH(&client, tcp, client.logInstance(), host, domain);
    bosh->setPath(path);
    bosh->setMode(mode == "persistent" ? ConnectionBOSH::ModePersistentHTTP
                                       : ConnectionBOSH::ModePipelining);
    client.setConnectionImpl(bosh);

    if (!client.connect(false))
        return 1;
    // Microseconds.
    while (client.recv(50000) == ConnNoError) {
        if (echo.leaving) {
            client.disconnect();
            break;
        }
    }
    return echo.clean ? 0 : 1;
}
